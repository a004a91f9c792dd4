"""Files on disk and from the web: written whole or not at all, locked, downloaded, unpacked. No torch."""
