"""`virtserial-qemu` with a fault: it does not mark the pages dirty that it has written.  For negative controls."""

import sys

from virtserial.cli.qemu import main
from virtserial.daemon.worker import relocation

relocation.touch_written = lambda device: None
sys.exit(main())
