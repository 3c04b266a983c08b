"""Images: requests in line, drawn together where they are alike."""
