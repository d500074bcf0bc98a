import sys

from vfmbench.cli import main

sys.exit(main())
