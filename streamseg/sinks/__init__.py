"""Where results go: onto the network (``publisher``) and into files (``files``)."""
