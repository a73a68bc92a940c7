"""Starting points for the splats."""
