"""The layer: functions and modules, differentiable, eager and compiled. Imports `core` and `backends`."""
