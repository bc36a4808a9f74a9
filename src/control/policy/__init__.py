"""The policy: what a statement is (facts, lineage), what the document says (rules), and the verdict (decide, engine).

Never add here: anything that runs; import the modules by name.
"""
