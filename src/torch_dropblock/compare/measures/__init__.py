"""Measures of a trained network beside accuracy: one file per measure, each a function of a `Trained`."""
