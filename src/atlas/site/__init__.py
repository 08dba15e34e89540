"""The atlas site: static pages made from the results; they open from disk, without a server or a network."""
