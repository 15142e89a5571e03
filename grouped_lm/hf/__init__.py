"""To and from the file formats of Hugging Face transformers; needs transformers only where a model of it is given."""
