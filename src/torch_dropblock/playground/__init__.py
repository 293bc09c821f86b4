"""A local web page to try every setting. Imports `pictures`, `networks`, and the extra `playground`."""
