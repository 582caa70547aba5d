"""`python -m workbench` is the `workbench` command; nothing else may live here."""

import sys

from workbench.cli import main

sys.exit(main())
