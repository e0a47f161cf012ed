"""What benchmarks and tests share: running notebooks, a browser, and the tables of the docs."""
