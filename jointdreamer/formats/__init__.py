"""Files of other programs: pictures and meshes, read as their standards say."""
