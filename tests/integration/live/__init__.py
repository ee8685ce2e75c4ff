"""Tests of the loop in a running Airflow: a package, whose servers stop after its last test."""
