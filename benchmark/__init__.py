"""What the figures of this project are measured with; benchmark/README.md says which script measures what.

The folders are importable from the root of the repository, and from everywhere after `pip install --editable .`.
"""
