"""What a trained network can do beyond accuracy: one file per measure, each a function of a `Trained`."""
