"""The composition root: recipes, the command line, Ray actors and the driver. The only package that imports ray."""
