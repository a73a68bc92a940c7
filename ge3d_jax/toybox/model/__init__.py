"""The bundled model: how it is trained."""
