"""Flow maps of video sets: how they are estimated, drawn, written and told apart."""
