"""What people look at: pictures of frames and masks, plots of scores, result pages."""
