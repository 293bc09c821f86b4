"""A page on this machine that shows every setting. Imports `pictures`, `networks`, and the extra `playground`."""
