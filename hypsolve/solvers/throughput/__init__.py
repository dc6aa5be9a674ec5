"""Methods that maximise the request rate of a batched server over all splits."""
