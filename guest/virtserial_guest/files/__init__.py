"""Files and trees over a link: sender, receiver, and what they say to each other (docs/file-protocol.md)."""
