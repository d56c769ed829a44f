"""Other inference servers, started with the same models on the same core, and asked by the same
driver: `remontoir bench peers`. Not part of the product.
"""
