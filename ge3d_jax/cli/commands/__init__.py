"""The commands of `ge3d`: one module each, with its flags and its main.

The docstring of a command's module is what --help says, and the parameters of its main are its positional
arguments, all of them strings. To add a command, add its module and a line here.
"""

# Name → description in `ge3d --help`. The module has the same name, with _ for -.
COMMANDS = {
    "generate": "make a 3D object from a sentence",
    "sweep": "make objects of many sentences and seeds, and a page that shows them",
    "fit": "fit splats to pictures with known cameras",
    "edit": "edit one picture, as GE3D edits views or by other methods",
    "show": "render a splat file: turntables, pictures, an interactive page",
    "mesh": "make a textured mesh of an object of splats",
    "convert": "convert a splat file to another format",
    "sample": "make pictures from sentences",
    "point-cloud": "make a point cloud from a sentence",
    "check-model": "check whether a model is loaded correctly",
    "render-toybox": "write posed pictures of an object of the Toybox world",
}
