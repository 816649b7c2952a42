"""Guest memory as the device sees it: regions from DMA maps, addresses to views, and the state memory."""
