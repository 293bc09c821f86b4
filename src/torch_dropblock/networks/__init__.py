"""Insert, find, schedule, summarise and remove the layers of a network. Imports `layer`, `backends` and `core`."""
