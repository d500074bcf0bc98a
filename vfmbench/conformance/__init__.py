"""What every sampler and every task must hold, as checks that any part can be given: those of a plugin file, too."""
