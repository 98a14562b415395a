"""Several concepts in one model, after training: closed forms on the host, in numpy and float64."""
