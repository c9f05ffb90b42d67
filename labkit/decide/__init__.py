"""Decide: from what was measured to what to do – predicted phases, break-evens, waiting and
GPU-hours at a traffic, ranked advice.

Everything here is a calculation over records, and says which of its inputs were measured, given by
the reader, or assumed. Lesson: notebooks/09_decide."""
