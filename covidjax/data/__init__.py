"""Sources of images, and how they reach the device."""
