"""Models that the user's own code makes: "package.module:function", called from the working directory."""
