"""Tests of the setup: pinned requirements, the model of `make demo-real`, how Ray starts."""
