"""Exercises, one module a notebook: `labkit.lessons.exercises.anatomy` holds those of 01_anatomy as
`EXERCISES`."""
