"""Read `.tflite` files, and write them as a plan says."""
