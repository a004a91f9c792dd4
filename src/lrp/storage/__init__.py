"""Files on disk and from the web: written whole or not at all, appended to, locked, downloaded, unpacked. No torch."""
