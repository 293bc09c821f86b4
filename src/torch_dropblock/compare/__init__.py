"""The paper's table of regularisers, trained anew. Imports `bench`, `pictures`, `networks`, and the extra `train`."""
