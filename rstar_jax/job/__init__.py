"""A job on one or several machines: its processes, its workdir, its store, how it ends."""
