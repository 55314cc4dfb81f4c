"""Speed and memory of conv2affine, next to the floors of the machine and to what people do instead."""
