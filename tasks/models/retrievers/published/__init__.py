"""Files that are copied into a saved checkpoint's folder, so that other libraries can load it.

The factory itself uses only the MLLM type's prompts and inputs (bge_vl_prompts, bge_vl_inputs), so that both are the
same code here and beside the published weights.
"""
