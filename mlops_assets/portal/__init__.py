"""The portal: one page that says how every pipeline is, and links to all there is."""
