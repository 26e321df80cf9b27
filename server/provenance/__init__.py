"""What a picture says of its origin: markers, the invisible watermark, Content Credentials."""
