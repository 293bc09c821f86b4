"""`torch-dropblock compare`: which regulariser wins, on real images.

    settings, rows ──> study: each row with each seed ── training ──> records ── report ──> table, plots
                                                            │
                                        data, networks, noise ─┘

data reads arrays or folders; a folder has folder_parts, each an image_folder of files that image_file reads.

A row is what is compared: the network and the recipe of all, with one regulariser or several. A run is the training
of one row with one seed. What a directory holds of a study is always whole: it can be stopped and started anywhere.
"""
