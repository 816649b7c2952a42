"""The drop-in for QEMU's command line: which of its words are ours, what QEMU gets instead, how both are started."""
