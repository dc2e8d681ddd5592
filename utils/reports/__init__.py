"""Reports for people: pictures of frames and masks, plots of scores, result pages."""
