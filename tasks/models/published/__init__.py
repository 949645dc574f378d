"""What goes into a checkpoint's folder beside weights and processor, so that others can load it; the factory itself runs none of it."""
