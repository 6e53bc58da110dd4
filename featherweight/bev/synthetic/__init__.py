"""A world drawn here in nuScenes' format: streets, traffic, a camera and a laser, without a download and a GPU."""
