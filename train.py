"""The one entry point: compose a config from conf/ and the command line, check the mix, train, test, write the result.

    python train.py                                         digits, two minutes, two cores
    python train.py dataset=cifar10 model=resnet20          another mix
    python train.py -m optimizer.lr=0.03,0.1 seed=1,2,3     a sweep
    python train.py resume=outputs/<run>                    go on with a run that was stopped
    python train.py --cfg job                               show the config, train nothing
"""

from papermix.run.cli import main

if __name__ == "__main__":
    main()
