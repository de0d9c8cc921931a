"""Mesh files: glTF, OBJ and PLY, with their colours, read as their standards say."""
