"""One convolution layer: what users pass, checked once, and what its matrix takes."""
