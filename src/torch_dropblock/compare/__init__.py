"""The paper's table of regularisers, on your data. Imports `bench`, `pictures`, `networks`, and the extra `train`."""
